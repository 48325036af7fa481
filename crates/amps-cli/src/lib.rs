//! (foundation being laid)
