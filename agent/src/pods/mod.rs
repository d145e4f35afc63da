//! The pods of this node: their records and addresses, their wiring, their limits.

pub mod limit;
pub mod pool;
pub mod record;
pub mod remover;
pub mod wire;

pub use limit::Limits;
pub use pool::Pool;
pub use record::{Record, RecordError, Records};
pub use remover::{RemoveError, Remover};
