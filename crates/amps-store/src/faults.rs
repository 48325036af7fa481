//! What goes wrong on purpose, for tests: system calls that fail, and bugs in the store itself.

pub(crate) mod calls;
pub(crate) mod planted;
