# The programs of tests/kernels that check kernels against float64, without ONNX Runtime's table: they run under the
# sanitizers, and under an emulator for another architecture.

# A program of the sources of the folders that `pattern` matches, without ops.
function(hebbline_check name pattern)
  set(sources ${KERNEL_SOURCES} ${SCORES_SOURCES} ${DRAWS_SOURCES})
  list(FILTER sources INCLUDE REGEX "${pattern}")
  list(FILTER sources EXCLUDE REGEX "(/|_)op\\.cpp$")
  add_executable(${name} tests/kernels/${name}.cpp ${sources} ${ARGN})
  target_link_libraries(${name} PRIVATE hebbline_platform Threads::Threads)
endfunction()

hebbline_check(linear_check "kernels/linear/" kernels/ort/api.cpp)
hebbline_check(attention_check "kernels/(attention|head|norm)/|linear/activations\\.cpp$")
hebbline_check(scores_check "native/scores/")
hebbline_check(draws_check "native/draws/")
