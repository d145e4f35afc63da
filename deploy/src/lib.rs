//! The references of what users set and see: the chart's values and their schema, the programs' flags, annotations, reasons of drops. Each is made of
//! the place where that is declared, and kept equal to it by this crate's tests (`make reference`).

pub mod annotations;
pub mod drops;
pub mod flags;
pub mod kept;
pub mod schema;
pub mod values;
