# Finds the torch that the ops are compiled against: the one that Python_EXECUTABLE imports.
#
# Sets PYRL_TORCH_DIR, PYRL_TORCH_VERSION and PYRL_TORCH_CUDA, the CUDA version it was built for ("13.0"), empty without.

execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, torch.version.cuda or '', sep=';')"
  OUTPUT_VARIABLE PYRL_TORCH ERROR_VARIABLE PYRL_TORCH_ERROR RESULT_VARIABLE PYRL_TORCH_RC
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT PYRL_TORCH_RC EQUAL 0)
  message(FATAL_ERROR
    "torch cannot be imported by ${Python_EXECUTABLE}, and the ops are compiled against its headers:\n"
    "${PYRL_TORCH_ERROR}\n"
    "Install torch >= 2.10 into this environment first (requirements/cpu.lock), then build with "
    "`pip install --no-build-isolation --no-deps .`; without --no-build-isolation pip builds where torch is missing.")
endif()
list(GET PYRL_TORCH 0 PYRL_TORCH_DIR)
list(GET PYRL_TORCH 1 PYRL_TORCH_VERSION)
list(GET PYRL_TORCH 2 PYRL_TORCH_CUDA)
if(PYRL_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "torch ${PYRL_TORCH_VERSION} found, but the stable ABI used here needs torch >= 2.10")
endif()
