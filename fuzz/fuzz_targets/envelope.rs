#![cfg_attr(fuzzing, no_main)]

amps_fuzz::target!(envelope);
