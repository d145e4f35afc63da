//! The tenants and numbers that a step is planned on: a copy that runs ahead of the ledger.
//!
//! The numbers' key is where all allocation meets: whatever gives out a number or a subnet compares **and** writes it,
//! so that of two transactions planned on one state only one can happen.

use bulkhead_core::{Numbers, Tenant, Tenants};

use super::step::Step;
use crate::state::State;

/// The copy.
pub(super) struct Draft<'a> {
    state: &'a State,
    revision: i64,
    pub(super) tenants: Tenants,
    pub(super) numbers: Numbers,
}

impl<'a> Draft<'a> {
    /// None while any of it cannot be read: numbers could be given out twice.
    pub(super) fn new(state: &'a State) -> Option<Self> {
        let held = state.numbers.as_ref()?;
        let numbers = held.value.clone().ok()?;
        if state.ledger.len() != state.tenants.len() {
            return None;
        }
        Some(Self { state, revision: held.revision, tenants: state.tenants.clone(), numbers })
    }

    /// Makes the step one of those that the numbers' key puts in a row.
    pub(super) fn serialise(&self, step: &mut Step) {
        let key = self.state.keys().numbers();
        step.expect(key.as_str(), self.revision);
        step.put(key, bulkhead_core::ledger::to_json(&self.numbers));
    }

    /// Releases those of a former tenant's numbers that nobody has any more; call it when the tenants have changed.
    pub(super) fn release(&mut self, former: &Tenant, step: &mut Step) {
        let before = self.numbers.clone();
        for number in [former.vni.get(), former.net_id.get()] {
            if !self.tenants.in_use(number) {
                self.numbers.release(number);
            }
        }
        if before != self.numbers {
            self.serialise(step);
        }
    }
}
