# The programs of tests/kernels that check kernels against float64, without ONNX Runtime's table: they run under the
# sanitizers, and under an emulator for another architecture.

# A program of the libraries' objects whose paths `pattern` matches, without ops. Nothing is compiled twice for it.
function(hebbline_check name pattern)
  set(objects "$<TARGET_OBJECTS:hebbline_kernels>$<SEMICOLON>$<TARGET_OBJECTS:hebbline_train>")
  set(objects "$<FILTER:${objects},INCLUDE,[.]dir/([.]/)?(${pattern})>")
  add_executable(${name} tests/kernels/${name}.cpp "$<FILTER:${objects},EXCLUDE,(/|_)op[.]cpp[.]o>")
  target_link_libraries(${name} PRIVATE hebbline_platform Threads::Threads)
endfunction()

hebbline_check(linear_check "kernels/linear/|kernels/ort/api[.]cpp")
hebbline_check(attention_check "kernels/(attention|head|norm|sample)/|kernels/linear/activations[.]cpp")
hebbline_check(scores_check "train/native/scores/")
hebbline_check(draws_check "train/native/draws/")
hebbline_check(links_check "train/native/links/")
