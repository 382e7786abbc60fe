//! The `ConsulLock` resource, `consullock.dev/v1alpha1`: what a user writes ([`ConsulLockSpec`]),
//! what it means ([`Settings`]), what the controller reports ([`ConsulLockStatus`]), and the
//! generated definition ([`crd_yaml`]). No client, and no logic but validation.
//!
//! # Guarantees
//! Reading an object fails only over a value of the wrong JSON type, which the API server never
//! stores; everything else is left to [`ConsulLockSpec::settings`], which refuses it with a message
//! that names the field. The schema refuses no less than that.

use kube::CustomResourceExt;

mod duration;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod rules;
mod settings;
mod spec;
mod status;

pub use duration::{DurationError, DurationOrNever, GoDuration};
pub use settings::{
    AcquireSettings, CandidatesSettings, GateSettings, ModeSettings, SessionBehavior,
    SessionSettings, Settings, SpecError, VALUE_MAX_CHARS,
};
pub use spec::{
    AcquireSpec, Behavior, CandidatesSpec, ChecksSpec, ConsulLock, ConsulLockSpec, ExpressionSpec,
    GatePolicy, GateSpec, Mode, OnLost, Operator, RoutingSpec, SelectorSpec, SessionSpec, Strategy,
};
pub use status::{
    CandidatesStatus, ConsulLockStatus, ContainerStatus, GuaranteeStatus, HISTORY_LENGTH,
    HolderStatus, Phase, ROUTING_SYNCED, SessionHealth, SessionStatus, TenureStatus,
};

/// The finalizer by which a deleted claim waits for its key's clean release.
pub const FINALIZER: &str = "consullock.dev/release";

/// The Namespace annotation that lists further key prefixes that its claims may use.
pub const KEY_PREFIXES_ANNOTATION: &str = "consullock.dev/key-prefixes";

const HEADER: &str = "# Generated from src/api/ by `make generate`. Do not edit.\n";

/// The CustomResourceDefinition as `crds/consullocks.yaml` holds it.
///
/// # Panics
/// Never: the definition is a constant of this build, and a test renders it.
pub fn crd_yaml() -> String {
    let body = serde_saphyr::to_string(&ConsulLock::crd())
        .expect("the definition is plain data that a test renders");
    format!("{HEADER}{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crds_are_current() {
        for file in ["crds/consullocks.yaml", "charts/consul-lock/crds/consullocks.yaml"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let on_disk = std::fs::read_to_string(path).unwrap_or_default();
            assert!(
                on_disk == crd_yaml(),
                "{file} is out of date: run `make generate` and commit the result"
            );
        }
    }
}
