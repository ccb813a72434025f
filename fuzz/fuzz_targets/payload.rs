//! The fuzz target `payload`: see [`gitstafette_fuzz::payload`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gitstafette_fuzz::payload::run(data));
