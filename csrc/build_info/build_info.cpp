// pyrl._build_info: what this build of the ops is. It links neither torch nor CUDA, so it loads wherever Python does.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_build_info, module) {
  module.doc() = "What the compiled part of pyrl was built with.";
  module.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = PYRL_VERSION;
        info["cuda"] = false;
        info["architectures"] = py::list();
        info["compiler"] = PYRL_COMPILER;
        info["build_type"] = PYRL_BUILD_TYPE;
        info["torch"] = PYRL_TORCH_VERSION;
        return info;
      },
      "version, cuda (bool), architectures (CUDA, e.g. ['sm_90']), compiler, build_type, torch (headers compiled with)");
}
