//! A world without sockets, clocks, threads or tasks: real stores on simulated disks under
//! the real `Delivery` and session, model servers that follow the documented rules, and a
//! network between them. Whatever happens is decided by the test, or by a seed.

pub mod chaos;
pub mod ledger;
pub mod link;
pub mod manners;
pub mod publisher;
pub mod server;
pub mod single;
pub mod tap;
pub mod world;

pub use amps_store::testkit::Rng;
