//! Elections among a claim's candidates: who should lead, what the elected pod carries, and where
//! traffic goes. Pure: plain data in, plain data out.
//!
//! # Guarantees
//! A living leader is replaced only for a reason that [`elect`] names, and a leader that is being
//! deleted or cannot be reached only on proof of death or after the time that the claim sets for
//! it. [`slices`] never makes more than one endpoint.
//! # Not guaranteed
//! That a pod without the label has stopped working: whoever needs that lets the protected resource
//! check the fencing token, sets `onLost: DeletePod`, or uses agent mode.

mod badge;
mod candidate;
mod elect;
mod handover;
mod leader;
mod routing;
mod runs;

pub use badge::*;
pub use candidate::*;
pub use elect::*;
pub use handover::*;
pub use leader::*;
pub use routing::*;
pub use runs::*;
