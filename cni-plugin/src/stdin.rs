//! Reads the network config from stdin, bounded.

use std::io::Read;

use bulkhead_core::cni::{Code, Failure};

/// The largest config that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Everything on stdin, if it is no more than [`MAX_BYTES`].
pub fn read() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(Code::Io, "the network config cannot be read from stdin", error.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Failure::new(
            Code::InvalidConfig,
            "the network config is larger than 1 MiB",
            "the runtime passes it on stdin: look at the size of the conflist and of its args",
        ));
    }
    Ok(bytes)
}
