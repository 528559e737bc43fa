# The instruction sets that kernels are compiled for, a row each: the ending of a source file's name, the architecture
# that has it, and the compiler's flags. A file whose name ends in none of them is compiled for every processor of the
# architecture. To add one, add a row, its vectors in kernels/simd/ and its name in kernels/platform/variants.h.

set(HEBBLINE_INSTRUCTION_SETS "")

function(hebbline_instruction_set suffix architecture)
  set(HEBBLINE_INSTRUCTION_SETS ${HEBBLINE_INSTRUCTION_SETS} ${suffix} PARENT_SCOPE)
  set(HEBBLINE_${suffix}_ARCHITECTURE ${architecture} PARENT_SCOPE)
  set(HEBBLINE_${suffix}_FLAGS ${ARGN} PARENT_SCOPE)
endfunction()

set(avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt)
set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mavx512vnni
           -mprefer-vector-width=512)
hebbline_instruction_set(avx2 x86_64 ${avx2})
hebbline_instruction_set(avx2vnni x86_64 ${avx2} -mavxvnni)
hebbline_instruction_set(avx512f x86_64 ${avx2} -mavx512f)
hebbline_instruction_set(avx512 x86_64 ${avx512})
hebbline_instruction_set(avx512bf16 x86_64 ${avx512} -mavx512bf16)
hebbline_instruction_set(amx x86_64 ${avx512} -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16)
# Every processor has NEON, but a file must ask for the vectors by which it is more than plain code.
hebbline_instruction_set(neon aarch64 -DHEBBLINE_NEON)
hebbline_instruction_set(neondot aarch64 -DHEBBLINE_NEON -march=armv8.2-a+dotprod)
hebbline_instruction_set(neoni8mm aarch64 -DHEBBLINE_NEON -march=armv8.2-a+dotprod+i8mm)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(HEBBLINE_ARCHITECTURE x86_64)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(HEBBLINE_ARCHITECTURE aarch64)
endif()
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  unset(HEBBLINE_ARCHITECTURE)
endif()

# Gives each source in the list the flags of its instruction set, and takes those of other architectures out.
function(hebbline_choose_sources list)
  set(chosen "")
  foreach(source IN LISTS ${list})
    set(taken TRUE)
    foreach(suffix IN LISTS HEBBLINE_INSTRUCTION_SETS)
      if(source MATCHES "_${suffix}\\.cpp$")
        if(HEBBLINE_${suffix}_ARCHITECTURE STREQUAL HEBBLINE_ARCHITECTURE)
          set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS ${HEBBLINE_${suffix}_FLAGS})
        else()
          set(taken FALSE)
        endif()
      endif()
    endforeach()
    if(taken)
      list(APPEND chosen ${source})
    endif()
  endforeach()
  set(${list} ${chosen} PARENT_SCOPE)
endfunction()
