# cmake -DOBJECTS=<object|object|…> -DOBJDUMP=<objdump> -P baseline.cmake
# What is compiled for everybody may use nothing beyond x86-64-v2: no VEX or EVEX encoding (mnemonics
# with v, registers ymm and zmm), no BMI. A stray flag would end the process on an older machine.
string(REPLACE "|" ";" objects "${OBJECTS}")
foreach(object ${objects})
  execute_process(COMMAND ${OBJDUMP} -d --no-show-raw-insn ${object} OUTPUT_VARIABLE code
                  RESULT_VARIABLE failed)
  if(failed OR NOT code MATCHES "file format")  # one of data alone has no code
    message(FATAL_ERROR "objdump could not read ${object}")
  endif()
  string(REGEX MATCHALL "\t(v[a-z0-9]+|andn|bextr|blsi|blsr|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt) [^\n]*"
         beyond "${code}")
  string(REGEX MATCHALL "[^\n]*%[yz]mm[^\n]*" wide "${code}")
  foreach(line ${beyond} ${wide})
    message(SEND_ERROR "${object}: beyond x86-64-v2: ${line}")
  endforeach()
endforeach()
list(LENGTH objects count)
if(count LESS 2)
  message(FATAL_ERROR "only ${count} objects were given")
endif()
