//! What Portcullis decides to do, in the form that is logged and that others build on.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Drop,
    Alert,
}

/// Whether decisions are carried out or only written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Enforce,
    Observe,
}

/// Who asked for a block. All but the detectors have a reserve of the map to themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Automatic,
    /// By a command.
    Operator,
    /// By listing it in the configuration.
    Configured,
}

/// Whom a decision is about: all the parts that are named must match, and at least one is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<IpNet>,
    /// TLS client fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ja4: Option<Arc<str>>,
}

impl Subject {
    /// A client by its address. An IPv6 client moves within its /64, so that is what is named.
    pub fn client(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            ip @ IpAddr::V4(_) => Self { ip: Some(ip), ..Self::default() },
            ip @ IpAddr::V6(_) => {
                let net = IpNet::new_assert(ip, 64).trunc();
                Self { cidr: Some(net), ..Self::default() }
            }
        }
    }

    /// The addresses it covers, if it is about addresses.
    pub fn network(&self) -> Option<IpNet> {
        self.cidr.or(self.ip.map(IpNet::from))
    }
}

/// One line of the decision format, version 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Holds for what comes strictly later than this.
    pub ts: Timestamp,
    /// Unique for the life of the installation.
    pub id: String,
    pub action: Action,
    pub subject: Subject,
    pub service: Option<Arc<str>>,
    pub ttl_s: u64,
    pub detector: String,
    pub owasp: String,
    pub score: f64,
    pub reason: String,
    pub evidence: Map<String, Value>,
    pub mode: Mode,
}

impl Decision {
    /// The number that the kernel's entries name the decision by: its id, which is 16
    /// hexadecimal digits. `None` for an id that Portcullis did not make.
    pub fn rule_id(&self) -> Option<u64> {
        let is_own = self.id.len() == 16 && self.id.bytes().all(|b| b.is_ascii_hexdigit());
        if is_own { u64::from_str_radix(&self.id, 16).ok() } else { None }
    }
}

/// Ends a decision before its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lift {
    pub ts: Timestamp,
    pub id: String,
    pub action: LiftAction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LiftAction {
    #[serde(rename = "lift")]
    Lift,
}

#[cfg(test)]
mod tests {
    use super::Subject;

    #[test]
    fn a_subject_names_its_parts_in_order_and_no_others() {
        let subject = Subject {
            ja4: Some("t13d1516h2_8daaf6152771_e5627efa2ab1".into()),
            ..Subject::client("2001:db8::7".parse().unwrap())
        };
        let json = r#"{"cidr":"2001:db8::/64","ja4":"t13d1516h2_8daaf6152771_e5627efa2ab1"}"#;
        assert_eq!(serde_json::to_string(&subject).unwrap(), json);
        assert_eq!(serde_json::from_str::<Subject>(json).unwrap(), subject);
        let client = Subject::client("192.0.2.7".parse().unwrap());
        assert_eq!(serde_json::to_string(&client).unwrap(), r#"{"ip":"192.0.2.7"}"#);
    }
}
