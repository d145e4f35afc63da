//! DEL: out of the maps and the books in one step, then the devices. What is gone already is no error.

use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cni::{Code, Failure};
use thiserror::Error;

use crate::live::{ForgetError, Live};
use crate::pods::RemoveError;

/// Why a pod cannot be detached.
#[derive(Debug, Error)]
pub(super) enum DetachError {
    #[error(transparent)]
    Forget(#[from] ForgetError),
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// A DEL's errors as CNI codes: the runtime calls again.
pub(super) fn failure(error: &DetachError) -> Failure {
    let code = match error {
        DetachError::Forget(_) => Code::Internal,
        DetachError::Remove(_) => Code::Kernel,
    };
    Failure::new(code, "the pod could not be detached", error.to_string())
}

/// Detaches a pod. The caller holds the attachment's lock.
pub(super) fn del(live: &Live, id: &AttachmentId) -> Result<(), DetachError> {
    let Some(record) = live.records.get(id) else { return Ok(()) };
    // The maps first: from here nothing reaches the address and nothing leaves the device.
    live.forget(&record)?;
    Ok(live.remover.remove(&record)?)
}
