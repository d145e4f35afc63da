//! DEL: out of the maps, then the devices, then out of the books: an address is free only when no device has its name any
//! more. What is gone already is no error; after a crash in between the record is there still, for the DEL that comes again.

use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cni::{Code, Failure};
use thiserror::Error;

use crate::datapath::DatapathError;
use crate::live::{ForgetError, Live};
use crate::pods::RemoveError;

/// Why a pod cannot be detached.
#[derive(Debug, Error)]
pub(super) enum DetachError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Forget(#[from] ForgetError),
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// A DEL's errors as CNI codes: the runtime calls again.
pub(super) fn failure(error: &DetachError) -> Failure {
    let code = match error {
        DetachError::Datapath(_) | DetachError::Forget(_) => Code::Internal,
        DetachError::Remove(_) => Code::Kernel,
    };
    Failure::new(code, "the pod could not be detached", error.to_string())
}

/// Detaches a pod. The caller holds the attachment's lock.
pub(super) fn del(live: &Live, id: &AttachmentId) -> Result<(), DetachError> {
    let Some(record) = live.records.get(id) else { return Ok(()) };
    live.withdraw(&record)?;
    live.remover.remove(&record)?;
    Ok(live.forget(&record)?)
}
