//! What Portcullis decides to do, in the form that is logged and that others build on.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::rule::{Effect, Flow, Rate, RuleName, Target};
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Drop,
    /// Drops what exceeds the decision's rate.
    RateLimit,
    /// New connections meet the decoy.
    Deceive,
    /// Counts the packets.
    Tag,
    /// Nothing but a line in the log.
    Alert,
}

impl Action {
    /// The name in decisions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::RateLimit => "rate_limit",
            Self::Deceive => "deceive",
            Self::Tag => "tag",
            Self::Alert => "alert",
        }
    }
}

/// Where a decision holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// For all that the host serves.
    #[default]
    Host,
    /// On the ports and addresses of the decision's service alone.
    Service,
}

impl Scope {
    fn is_host(&self) -> bool {
        *self == Self::Host
    }
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
    /// One connection, and nothing beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<Flow>,
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

    /// What a rule of the kernel names for it; `None` when it names nobody, or a flow beside
    /// something else.
    pub fn target(&self) -> Option<Target> {
        let net = self.cidr.or(self.ip.map(IpNet::from));
        match (net, &self.ja4, self.flow) {
            (Some(net), None, None) => Some(Target::Network(net)),
            (None, Some(ja4), None) => Some(Target::Fingerprint(ja4.clone())),
            (Some(net), Some(ja4), None) => Some(Target::Conjunction(net, ja4.clone())),
            (None, None, Some(flow)) => Some(Target::Flow(flow)),
            (None, None, None) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => None,
        }
    }

    /// The network that is all there is to the subject.
    pub fn network(&self) -> Option<IpNet> {
        match self.target()? {
            Target::Network(net) => Some(net),
            Target::Fingerprint(_) | Target::Conjunction(..) | Target::Flow(_) => None,
        }
    }

    /// The addresses that it is about, whatever else they have to match; `None` for those of
    /// everybody.
    pub fn addresses(&self) -> Option<IpNet> {
        let client = |flow: Flow| IpNet::from(flow.client.ip());
        self.cidr.or(self.ip.map(IpNet::from)).or(self.flow.map(client))
    }
}

impl From<Target> for Subject {
    fn from(target: Target) -> Self {
        let of_net = |net: IpNet| {
            if net.prefix_len() == net.max_prefix_len() {
                Self { ip: Some(net.addr()), ..Self::default() }
            } else {
                Self { cidr: Some(net), ..Self::default() }
            }
        };
        match target {
            Target::Network(net) => of_net(net),
            Target::Fingerprint(ja4) => Self { ja4: Some(ja4), ..Self::default() },
            Target::Conjunction(net, ja4) => Self { ja4: Some(ja4), ..of_net(net) },
            Target::Flow(flow) => Self { flow: Some(flow), ..Self::default() },
        }
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
    #[serde(default, skip_serializing_if = "Scope::is_host")]
    pub scope: Scope,
    pub ttl_s: u64,
    /// Of a [`Action::RateLimit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
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

impl Decision {
    /// The service that it holds for alone.
    pub fn scope(&self) -> Option<&Arc<str>> {
        match self.scope {
            Scope::Host => None,
            Scope::Service => self.service.as_ref(),
        }
    }

    /// The kernel's rule that carries it out.
    pub fn rule(&self) -> Option<RuleName> {
        let kind = Effect::of(self.action, self.rate)?.kind();
        Some(RuleName { target: self.subject.target()?, kind, service: self.scope().cloned() })
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

    #[test]
    fn a_rule_names_all_parts_of_a_subject() {
        for (json, target) in [
            (r#"{"ip":"192.0.2.7"}"#, Some("192.0.2.7")),
            (r#"{"cidr":"192.0.2.0/24"}"#, Some("192.0.2.0/24")),
            (
                r#"{"cidr":"192.0.2.0/24","ja4":"t13d1516h2_8daaf6152771_e5627efa2ab1"}"#,
                Some("192.0.2.0/24 with t13d1516h2_8daaf6152771_e5627efa2ab1"),
            ),
            (r#"{"flow":"192.0.2.7:1>192.0.2.1:443"}"#, Some("192.0.2.7:1>192.0.2.1:443")),
            (r#"{"ip":"192.0.2.7","flow":"192.0.2.7:1>192.0.2.1:443"}"#, None),
            ("{}", None),
        ] {
            let subject: Subject = serde_json::from_str(json).unwrap();
            let named = subject.target();
            assert_eq!(named.as_ref().map(ToString::to_string).as_deref(), target, "{json}");
            if let Some(named) = named {
                assert_eq!(Subject::from(named), subject);
            }
        }
    }
}
