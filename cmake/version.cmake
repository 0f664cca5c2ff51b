# Before cmake_minimum_required, which refuses an old CMake too but knows neither the reason nor the remedy.
if(CMAKE_VERSION VERSION_LESS 3.26)
  message(FATAL_ERROR
    "CMake ${CMAKE_VERSION} is too old, 3.26 or later is needed: before it CMake does not know how nvcc 13 is asked for "
    "C++20. Debian 12 ships 3.25. Install a newer one and put it first on PATH: pip install 'cmake>=3.26'")
endif()
