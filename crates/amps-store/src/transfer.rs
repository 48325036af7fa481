//! What writes another store, or takes messages out of one and into one as text.
//!
//! A [repair](repair_to) saves what is intact in a store that nobody uses, an
//! [evacuation](crate::Store::evacuate) what an open one holds; [`export`] and [`import`] are for
//! people and scripts.

mod evacuate;
mod ndjson;
mod rebuild;
mod repair;

pub use evacuate::EvacuateError;
pub use ndjson::{ExportError, Exported, ImportError, Imported, export, import};
pub use repair::{
    NameFrom, RepairError, RepairOptions, RepairReport, Unsaved, WithoutSuperblock, repair_to,
    repair_with,
};
