//! One change to the kernel's network state, ready to be sent in a batch.
//!
//! The constructors live beside what they change (`veth.rs`, `route.rs`, ...). An [`Op`] borrows the file descriptors that it names,
//! so none can be closed before it was sent.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;

/// Create, and fail with `EEXIST` if it is there.
pub(super) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Create, or make what is there like this.
pub(super) const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The errnos by which the kernel says that what is to be deleted is not there (which one depends on the object).
pub(super) const ABSENT: &[Errno] = &[Errno::NODEV, Errno::NOENT, Errno::SRCH, Errno::ADDRNOTAVAIL];

const ABSENT_OR_INVALID: &[Errno] = &[Errno::NODEV, Errno::NOENT, Errno::SRCH, Errno::ADDRNOTAVAIL, Errno::INVAL];

/// One change to the kernel's network state.
#[derive(Debug)]
#[must_use = "an Op does nothing until it is sent by Netlink::batch"]
pub struct Op<'fd> {
    message: RouteNetlinkMessage,
    /// `NLM_F_*` beyond REQUEST and ACK.
    flags: u16,
    expectation: Expectation,
    /// How the kernel says that there is nothing to delete.
    absence: &'static [Errno],
    descriptors: PhantomData<BorrowedFd<'fd>>,
}

/// What is left of an operation once it is sent: enough to judge the kernel's answer.
#[derive(Debug)]
pub(super) struct Expectation {
    /// For errors and logs.
    pub operation: String,
    /// Refusals that mean success.
    pub tolerated: &'static [Errno],
}

impl Op<'_> {
    pub(super) fn new(operation: String, message: RouteNetlinkMessage, flags: u16) -> Self {
        let expectation = Expectation { operation, tolerated: &[] };
        Self { message, flags, expectation, absence: ABSENT, descriptors: PhantomData }
    }

    /// A deletion succeeds as well when there is nothing to delete.
    pub fn if_present(mut self) -> Self {
        self.expectation.tolerated = self.absence;
        self
    }

    /// A creation succeeds as well when something of that name or key is there already, **whatever it is like**.
    pub fn unless_present(mut self) -> Self {
        self.expectation.tolerated = &[Errno::EXIST];
        self
    }

    /// For objects whose absence the kernel calls `EINVAL` at times.
    pub(super) fn absent_if_invalid(mut self) -> Self {
        self.absence = ABSENT_OR_INVALID;
        self
    }

    /// What the operation does, as errors and logs say it.
    pub fn operation(&self) -> &str {
        &self.expectation.operation
    }

    pub(super) fn into_parts(self) -> (RouteNetlinkMessage, u16, Expectation) {
        (self.message, self.flags, self.expectation)
    }
}
