//! The fuzz target `filter`: see [`gitstafette_fuzz::filter`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gitstafette_fuzz::filter::run(data));
