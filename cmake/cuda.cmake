# Decides whether the CUDA kernels are built, and how. Reads PYRL_CUDA, PYRL_TORCH_VERSION and PYRL_TORCH_CUDA (see
# torch.cmake), and CMAKE_CUDA_ARCHITECTURES where it is set.
#
#   PYRL_CUDA   torch for CUDA        torch for the CPU
#   on          built, or an error    built, or an error
#   auto        built, or an error    built where an nvcc is found
#   off         not built             not built
#
# Beside a torch for CUDA the nvcc must be of the same major version: the driver that is enough for one may be too old
# for the runtime of the other.
#
# Sets PYRL_WITH_CUDA; for messages and build_info: PYRL_BUILDS, PYRL_COMPILERS, PYRL_CUDA_CODE ("sm_80 ... compute_100").
# Defines pyrl_use_cuda(target).
#
# No GPU is needed to build.

if(NOT PYRL_CUDA MATCHES "^(on|off|auto)$")
  message(FATAL_ERROR "PYRL_CUDA is '${PYRL_CUDA}': set it to on, off or auto")
endif()

set(PYRL_WITH_CUDA OFF)
set(PYRL_COMPILERS "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
set(PYRL_CUDA_CODE "")
if(PYRL_CUDA STREQUAL "off")
  set(PYRL_BUILDS "CPU ops (PYRL_CUDA=off)")
  return()
endif()

set(PYRL_WANTED_CUDA "(12.4 or later)")
if(PYRL_TORCH_CUDA)
  string(REGEX MATCH "^[0-9]+" PYRL_TORCH_CUDA_MAJOR "${PYRL_TORCH_CUDA}")
  set(PYRL_WANTED_CUDA "${PYRL_TORCH_CUDA_MAJOR}")
  set(PYRL_TORCH_IS "torch ${PYRL_TORCH_VERSION} is a build for CUDA ${PYRL_TORCH_CUDA}")
endif()
set(PYRL_OR_WITHOUT "with PYRL_CUDA=off (in pip's environment, or -DPYRL_CUDA=off for cmake) the CPU ops are built alone")

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # or what an earlier search did not find is not looked for again
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(PYRL_CUDA STREQUAL "on")
    set(PYRL_NEEDED_BY "PYRL_CUDA=on")
  elseif(PYRL_TORCH_CUDA)
    set(PYRL_NEEDED_BY "${PYRL_TORCH_IS}")
  else()
    set(PYRL_BUILDS "CPU ops (no nvcc found, and PYRL_CUDA=auto)")
    return()
  endif()
  message(FATAL_ERROR
    "${PYRL_NEEDED_BY}, but no CUDA compiler was found, or none that works: "
    "${CMAKE_BINARY_DIR}/CMakeFiles/CMakeConfigureLog.yaml says what was tried.\n"
    "Install the CUDA toolkit ${PYRL_WANTED_CUDA} and put its nvcc on PATH, or name it by the environment variable "
    "CUDACXX; ${PYRL_OR_WITHOUT}.")
endif()

# Both must come before the target is created. Until the compiler's version is known, any architecture it has will do.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 80)
  set(PYRL_DEFAULT_ARCHITECTURES ON)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(PYRL_DEFAULT_ARCHITECTURES AND CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)  # sm_100 is newer than this compiler: its PTX runs there
elseif(PYRL_DEFAULT_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()

if(PYRL_TORCH_CUDA AND NOT CMAKE_CUDA_COMPILER_VERSION MATCHES "^${PYRL_TORCH_CUDA_MAJOR}\\.")
  message(FATAL_ERROR
    "${PYRL_TORCH_IS}, but ${CMAKE_CUDA_COMPILER} is nvcc ${CMAKE_CUDA_COMPILER_VERSION}: the major versions differ.\n"
    "Put an nvcc of CUDA ${PYRL_TORCH_CUDA_MAJOR} first on PATH, or name it by the environment variable CUDACXX, and remove "
    "${CMAKE_BINARY_DIR}, which remembers the other; ${PYRL_OR_WITHOUT}.")
endif()

set(PYRL_WITH_CUDA ON)
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  string(REGEX REPLACE "-(real|virtual)$" "" number "${architecture}")
  if(NOT architecture MATCHES "-virtual$")
    string(APPEND PYRL_CUDA_CODE " sm_${number}")
  endif()
  if(NOT architecture MATCHES "-real$")
    string(APPEND PYRL_CUDA_CODE " compute_${number}")
  endif()
endforeach()
string(STRIP "${PYRL_CUDA_CODE}" PYRL_CUDA_CODE)
string(APPEND PYRL_COMPILERS ", ${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
set(PYRL_BUILDS "CPU and CUDA ops (${PYRL_CUDA_CODE}; nvcc ${CMAKE_CUDA_COMPILER_VERSION})")

# The static runtime: nothing of CUDA has to be found where the library is loaded, but the driver that torch uses.
function(pyrl_use_cuda target)
  target_compile_definitions(${target} PRIVATE PYRL_HAVE_CUDA=1)
  target_include_directories(${target} PRIVATE csrc/cuda)
  target_include_directories(${target} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra>")
endfunction()
