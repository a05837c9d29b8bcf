//! What a detector says: who did what, how sure it is, and on what evidence.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::time::Timestamp;

/// The detectors' stable names. Those that exist so far; the formats reserve the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DetectorName {
    RequestRate,
    CredentialStuffing,
}

impl DetectorName {
    pub const ALL: [Self; 2] = [Self::RequestRate, Self::CredentialStuffing];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestRate => "request_rate",
            Self::CredentialStuffing => "credential_stuffing",
        }
    }

    /// The item of the OWASP API Security Top 10 (2023) that the detector covers.
    pub const fn owasp(self) -> &'static str {
        match self {
            Self::RequestRate => "API4:2023",
            Self::CredentialStuffing => "API2:2023",
        }
    }
}

impl fmt::Display for DetectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for DetectorName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Who is behind a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Actor {
    /// The client: the socket's peer, or what trusted proxies say of it.
    pub ip: IpAddr,
    /// The trusted proxy that the client came through. Such a client cannot be dropped by
    /// address in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// When the transaction that made it began; the finding holds for what comes later.
    pub ts: Timestamp,
    pub detector: DetectorName,
    pub actor: Actor,
    /// The configured service it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    pub owasp: &'static str,
    /// 0 to 1.
    pub score: f64,
    /// One sentence for a person. Holds no value from a request.
    pub reason: String,
    /// The measurements, with the thresholds they crossed. Holds no value from a request.
    pub evidence: Map<String, Value>,
}
