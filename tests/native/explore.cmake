# The explorers of the rings, and controls: the same explorers over ring code with one mistake in it, which must be found.
# They have stacks of their own, which the sanitizers do not understand.
set(RING_CODE order.h dataring.h dataring.c cmdring.h cmdring.c)
set(EXPLORE_OPTIONS -O2 -fno-sanitize=all)

add_library(explorer OBJECT explore.c states.c)
target_compile_options(explorer PRIVATE ${EXPLORE_OPTIONS})

# code: the folder of the ring code.
function(add_explorer name program code)
  add_executable(${name} ${program}.c ${code}/cmdring.c ${code}/dataring.c $<TARGET_OBJECTS:explorer>)
  target_include_directories(${name} PRIVATE ${code} ${CMAKE_CURRENT_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE XS_ORDER_HOOKS="explore.h")
  target_compile_options(${name} PRIVATE ${EXPLORE_OPTIONS})
  target_link_options(${name} PRIVATE -fno-sanitize=all)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 120)
endfunction()

# The same with `correct`, which must be there once, replaced by `wrong`; the explorer must then say `finding`.
function(add_mistake name program file correct wrong finding)
  set(code ${CMAKE_CURRENT_BINARY_DIR}/mistakes/${name})
  foreach(each ${RING_CODE})
    configure_file(${CMAKE_SOURCE_DIR}/native/core/${each} ${code}/${each} COPYONLY)
  endforeach()
  file(READ ${code}/${file} text)
  string(FIND "${text}" "${correct}" first)
  string(FIND "${text}" "${correct}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "${file} does not contain once, for the mistake ${name}:\n${correct}")
  endif()
  string(REPLACE "${correct}" "${wrong}" text "${text}")
  file(WRITE ${code}/${file} "${text}")
  add_explorer(mistake_${name} ${program} ${code})
  set_tests_properties(mistake_${name} PROPERTIES PASS_REGULAR_EXPRESSION "FAILED .*: ${finding}")
endfunction()

# The explorer itself, against what is known of C11's memory model.
add_explorer(explore_litmus explore_litmus ${CMAKE_SOURCE_DIR}/native/core)
add_explorer(explore_data explore_data ${CMAKE_SOURCE_DIR}/native/core)
add_explorer(explore_command explore_command ${CMAKE_SOURCE_DIR}/native/core)

set(lost "lost wake-up")
set(wrong "a wrong byte")

# Data rings: barriers, and looking once more before sleeping.
add_mistake(tell_without_barrier explore_data dataring.h
  "	xs_full_barrier();\n	return (uint32_t)(new" "	return (uint32_t)(new" "${lost}")
add_mistake(rx_arm_without_barrier explore_data dataring.h
  "h->own + 1);\n		xs_full_barrier();" "h->own + 1);" "${lost}")
add_mistake(tx_arm_without_barrier explore_data dataring.h
  "h->size + wanted);\n		xs_full_barrier();" "h->size + wanted);" "${lost}")
add_mistake(rx_arm_without_looking explore_data dataring.h
  "return xs_readable_or_error(h, &error) || error;" "return (void)error, false;" "${lost}")
add_mistake(tx_arm_without_looking explore_data dataring.h
  "return xs_room(h) >= wanted || xs_error(h);" "return false;" "${lost}")
add_mistake(rx_arm_without_error explore_data dataring.h
  "return xs_readable_or_error(h, &error) || error;" "return xs_readable_or_error(h, &error);" "${lost}")
add_mistake(tx_arm_without_error explore_data dataring.h
  "return xs_room(h) >= wanted || xs_error(h);" "return xs_room(h) >= wanted;" "${lost}")
# Which event is asked for, and when it counts as passed.
add_mistake(rx_arm_for_the_second_byte explore_data dataring.h "h->own + 1);" "h->own + 2);" "${lost}")
add_mistake(tx_arm_for_more_than_room explore_data dataring.h "h->own - h->size + wanted);" "h->own + 1);" "${lost}")
add_mistake(tell_without_wrap explore_data dataring.h
  "return (uint32_t)(new - xs_load_relaxed(h->their_event)) < (uint32_t)(new - old);"
  "uint32_t event = xs_load_relaxed(h->their_event);\n	return event > old && event <= new;" "${lost}")
add_mistake(tell_from_the_last_piece explore_data dataring.h
  "	h->own += n;\n" "	h->told = h->own;\n	h->own += n;\n" "${lost}")
# Order of bytes and indices.
add_mistake(publish_relaxed explore_data dataring.h "xs_store_release(h->mine, h->own);" "xs_store_relaxed(h->mine, h->own);" "${wrong}")
add_mistake(readable_relaxed explore_data dataring.h
  "return xs_queued(xs_load_acquire(h->theirs), h->own, h->size);"
  "return xs_queued(xs_load_relaxed(h->theirs), h->own, h->size);" "${wrong}")
add_mistake(error_after_bytes explore_data dataring.h
  "	int32_t seen = xs_error(h);\n	uint32_t n = xs_readable(h);\n"
  "	uint32_t n = xs_readable(h);\n	int32_t seen = xs_error(h);\n" "bytes are missing")
add_mistake(error_relaxed explore_data dataring.h
  "(int32_t)xs_load_acquire(h->error)" "(int32_t)xs_load_relaxed(h->error)" "bytes are missing")
# Arithmetic of indices.
add_mistake(full_is_empty explore_data dataring.h "return masked ? masked : size;" "return masked;" "${wrong}")
add_mistake(queued_believes_the_peer explore_data dataring.h
  "uint32_t masked = (prod - cons) & (size - 1);" "uint32_t masked = prod - cons;" "(more (bytes|room) than|a copy beyond)")
add_mistake(chunk_beyond_the_end explore_data dataring.h
  "return length < rest ? length : rest;" "return (void)rest, length;" "a copy beyond")

# Command rings.
add_mistake(front_push_without_barrier explore_command cmdring.h
  "	xs_full_barrier();\n	return (uint32_t)(new - xs_load_relaxed(&f->" "	return (uint32_t)(new - xs_load_relaxed(&f->" "${lost}")
add_mistake(back_push_without_barrier explore_command cmdring.h
  "	xs_full_barrier();\n	return (uint32_t)(new - xs_load_relaxed(&b->" "	return (uint32_t)(new - xs_load_relaxed(&b->" "${lost}")
add_mistake(front_arm_without_barrier explore_command cmdring.h
  "f->rsp_cons + 1);\n	xs_full_barrier();" "f->rsp_cons + 1);" "${lost}")
add_mistake(back_arm_without_barrier explore_command cmdring.h
  "b->req_cons + 1);\n	xs_full_barrier();" "b->req_cons + 1);" "${lost}")
add_mistake(front_arm_without_looking explore_command cmdring.h
  "return xs_load_acquire(&f->page->rsp_prod) != f->rsp_cons;" "return false;" "${lost}")
add_mistake(back_arm_without_looking explore_command cmdring.h
  "return xs_load_acquire(&b->page->req_prod) != b->req_cons;" "return false;" "${lost}")
add_mistake(front_push_relaxed explore_command cmdring.h
  "xs_store_release(&f->page->req_prod, new);" "xs_store_relaxed(&f->page->req_prod, new);" "a (torn|wrong) request")
add_mistake(back_push_relaxed explore_command cmdring.h
  "xs_store_release(&b->page->rsp_prod, new);" "xs_store_relaxed(&b->page->rsp_prod, new);" "a (torn|wrong) response")
add_mistake(front_pop_relaxed explore_command cmdring.h
  "xs_load_acquire(&f->page->rsp_prod) - f->rsp_cons;" "xs_load_relaxed(&f->page->rsp_prod) - f->rsp_cons;" "a (torn|wrong) response")
add_mistake(back_take_relaxed explore_command cmdring.h
  "xs_load_acquire(&b->page->req_prod) - b->req_cons;" "xs_load_relaxed(&b->page->req_prod) - b->req_cons;" "a (torn|wrong) request")
add_mistake(one_slot_too_many explore_command cmdring.h
  "return f->slots - (f->req_prod - f->rsp_cons);" "return f->slots + 1 - (f->req_prod - f->rsp_cons);"
  "an honest front is blamed")
add_mistake(back_believes_the_front explore_command cmdring.h
  "if (ready > b->slots - (b->req_cons - b->rsp_prod))" "if (ready > 0x40000000)" "more requests than slots")
add_mistake(front_believes_the_back explore_command cmdring.h
  "if (ready > f->told - f->rsp_cons)" "if (ready > 0x40000000)" "more free slots than slots")
add_mistake(push_without_wrap explore_command cmdring.h
  "return (uint32_t)(new - xs_load_relaxed(&f->page->req_event)) < (uint32_t)(new - old);"
  "uint32_t event = xs_load_relaxed(&f->page->req_event);\n	return event > old && event <= new;" "${lost}")
