//! The fuzz target `sessions`: see [`gitstafette_fuzz::sessions`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    gitstafette_fuzz::sessions::run(data);
});
