//! Publisher client for AMPS, under construction: the protocol comes first.

pub mod connector;
pub mod protocol;
pub mod uri;
