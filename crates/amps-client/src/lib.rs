//! Publisher client for AMPS, under construction: the protocol comes first.

pub mod protocol;
