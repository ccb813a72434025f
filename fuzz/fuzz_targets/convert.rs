//! The fuzz target `convert`: see [`gitstafette_fuzz::convert`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gitstafette_fuzz::convert::run(data));
