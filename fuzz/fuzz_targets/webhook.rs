//! The fuzz target `webhook`: see [`gitstafette_fuzz::webhook`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gitstafette_fuzz::webhook::run(data));
