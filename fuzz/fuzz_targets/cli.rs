#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| consul_lock::fuzz::run("cli", input));
