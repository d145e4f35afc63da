//! The pods of this node: their records and addresses, their wiring, their limits.

pub mod contents;
pub mod disk;
pub mod limit;
pub mod pool;
pub mod record;
pub mod records;
pub mod remover;
pub mod wire;

pub use disk::DiskError;
pub use limit::Limits;
pub use pool::Pool;
pub use record::Record;
pub use records::{RecordError, Records};
pub use remover::{RemoveError, Remover};
