# Libraries for wheels: the standard C++ library within, and no function of glibc that 2.28 has not. See
# kernels/platform/old_glibc.cpp.

target_compile_definitions(hebbline_platform PRIVATE HEBBLINE_MANYLINUX)
set(wrapped pthread_create pthread_join pthread_once fstat64 exp pow)
list(TRANSFORM wrapped PREPEND "-Wl,--wrap=")
foreach(library hebbline_kernels hebbline_train)
  target_link_options(${library} PRIVATE -static-libstdc++ -Wl,--gc-sections -s ${wrapped})
  # Threads were in a library of their own, which a process without threads may not have loaded.
  target_link_libraries(${library} PRIVATE -Wl,--push-state,--no-as-needed -l:libpthread.so.0 -Wl,--pop-state)
endforeach()
