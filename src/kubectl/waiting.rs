//! Waiting until a claim is as wanted.

use std::time::Duration;

use kube::runtime::wait;

use super::{Cluster, KubectlError};
use crate::api::ConsulLock;

/// Follows the claim until `good` is content with it; what it was then, or `None` if that did not
/// happen within `limit`. A claim that is deleted meanwhile ends the waiting with an error.
pub(super) async fn until(
    cluster: &Cluster,
    name: &str,
    limit: Duration,
    good: impl Fn(&ConsulLock) -> bool,
) -> Result<Option<ConsulLock>, KubectlError> {
    let is_good = |claim: Option<&ConsulLock>| claim.is_none_or(&good);
    let waited = wait::await_condition(cluster.claims(), name, is_good);
    match cluster.clock.timeout(limit, waited).await {
        Err(_) => Ok(None),
        Ok(Ok(Some(claim))) => Ok(Some(claim)),
        Ok(Ok(None)) => {
            let namespace = &cluster.namespace;
            Err(KubectlError::Refused(format!("{namespace}/{name} was deleted meanwhile")))
        }
        Ok(Err(wait::Error::ProbeFailed(error))) => Err(KubectlError::Watch(Box::new(error))),
    }
}
