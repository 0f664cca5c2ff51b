// pyrl._build_info: what this build of the ops is. It links neither torch nor CUDA, so it loads wherever Python does.
#include <sstream>
#include <string>

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

// "sm_80 sm_90" -> ["sm_80", "sm_90"]
py::list words(const char* text) {
  std::istringstream stream(text);
  py::list list;
  for (std::string word; stream >> word;) list.append(word);
  return list;
}

}  // namespace

PYBIND11_MODULE(_build_info, module) {
  module.doc() = "What the compiled part of pyrl was built with.";
  module.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = PYRL_VERSION;
        const py::list architectures = words(PYRL_CUDA_ARCHITECTURES);
        info["cuda"] = !architectures.empty();
        info["architectures"] = architectures;
        info["nvcc"] = architectures.empty() ? py::object(py::none()) : py::object(py::str(PYRL_NVCC));
        info["compiler"] = PYRL_COMPILER;
        info["build_type"] = PYRL_BUILD_TYPE;
        info["torch"] = PYRL_TORCH_VERSION;
        return info;
      },
      "version, cuda (bool), architectures (CUDA, e.g. ['sm_90', 'compute_100']), nvcc (version, None without CUDA), "
      "compiler, build_type, torch (headers compiled with)");
}
