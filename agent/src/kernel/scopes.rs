//! Services as the kernel knows them: numbered sets of destination ports and addresses. And the
//! failsafe ports, which stand in the same table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use portcullis_common::net::Addr;
use portcullis_common::policy::{EVERYWHERE, MAX_SCOPES, port};
use portcullis_common::settings::{Settings, feature};

use super::addresses::{addr, ip};
use super::shared::Shared;
use super::table::Table;
use crate::enforce::Scope;

/// Longest name of a service, in bytes.
const NAME_LEN: usize = 64;

pub(super) struct Scopes {
    names: Array<MapData, [u8; NAME_LEN]>,
    ports: Shared<u64>,
    addresses: Table<Addr, u64>,
    /// By number.
    defined: BTreeMap<u32, Scope>,
}

impl Scopes {
    /// Takes over what the maps hold.
    pub fn new(
        names: MapData,
        ports: Shared<u64>,
        addresses: Table<Addr, u64>,
        settings: &Settings,
    ) -> Result<Self> {
        let names: Array<_, [u8; NAME_LEN]> = Array::try_from(Map::from_map_data(names)?)?;
        let listed = addresses.entries()?;
        let mut defined = BTreeMap::new();
        for number in 0..MAX_SCOPES as u32 {
            let name = names.get(&number, 0).context("can't read the names of services")?;
            let len = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
            let Some(service) = std::str::from_utf8(&name[..len]).ok().filter(|s| !s.is_empty())
            else {
                continue;
            };
            let bit = 1 << number;
            let has_all_ports = settings.any_port_scopes & bit != 0;
            let in_scope = |at: &u16| ports.get(u32::from(*at)) & bit != 0;
            let scope = Scope {
                service: service.into(),
                ports: if has_all_ports {
                    Vec::new()
                } else {
                    (1..=u16::MAX).filter(in_scope).collect()
                },
                addresses: (listed.iter().filter(|(_, bits)| bits & bit != 0))
                    .map(|(addr, _)| ip(*addr))
                    .collect(),
            };
            defined.insert(number, scope);
        }
        Ok(Self { names, ports, addresses, defined })
    }

    /// The bits of a rule that holds for `service`; `None` for a service that has no scope.
    pub fn bits_of(&self, service: Option<&str>) -> Option<u64> {
        let Some(service) = service else { return Some(EVERYWHERE) };
        let (number, _) = self.defined.iter().find(|(_, scope)| &*scope.service == service)?;
        Some(1 << number)
    }

    /// The service of a rule with these bits.
    pub fn service_of(&self, bits: u64) -> Option<Arc<str>> {
        if bits == EVERYWHERE {
            return None;
        }
        Some(self.defined.get(&bits.trailing_zeros())?.service.clone())
    }

    /// Replaces what is defined by `scopes`, but for what rules use (`used`, by bits) and `scopes` does
    /// not name any more.
    pub fn set(&mut self, scopes: &[Scope], used: u64, settings: &Shared<Settings>) -> Result<()> {
        let is_named = |scope: &Scope| scopes.iter().any(|one| one.service == scope.service);
        let gone: Vec<u32> = (self.defined.iter())
            .filter(|(number, scope)| used >> **number & 1 == 0 && !is_named(scope))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.defined.remove(&number);
            self.names.set(number, [0; NAME_LEN], 0).context("can't write a service's name")?;
        }
        for scope in scopes {
            let known = self.defined.iter().find(|(_, one)| one.service == scope.service);
            let number = match known {
                Some((number, _)) => *number,
                None => (0..MAX_SCOPES as u32)
                    .find(|number| !self.defined.contains_key(number))
                    .with_context(|| format!("more than {MAX_SCOPES} services with ports"))?,
            };
            let mut name = [0; NAME_LEN];
            for (to, from) in name.iter_mut().zip(scope.service.bytes()) {
                *to = from;
            }
            self.names.set(number, name, 0).context("can't write a service's name")?;
            self.defined.insert(number, scope.clone());
        }
        self.write(settings)
    }

    pub fn copy_from(&mut self, old: &Self, settings: &Shared<Settings>) -> Result<()> {
        for at in 0..=u16::MAX {
            let failsafe = port::FAILSAFE_TCP | port::FAILSAFE_UDP;
            self.ports.set_bits(at.into(), old.ports.get(at.into()) & failsafe);
        }
        let all: Vec<Scope> = old.defined.values().cloned().collect();
        self.set(&all, 0, settings)
    }

    fn write(&mut self, settings: &Shared<Settings>) -> Result<()> {
        let (mut any_port, mut any_address) = (0, 0);
        let mut ports = HashMap::<u16, u64>::new();
        let mut addresses = HashMap::<Addr, u64>::new();
        for (number, scope) in &self.defined {
            let bit = 1_u64 << number;
            if scope.ports.is_empty() {
                any_port |= bit;
            }
            if scope.addresses.is_empty() {
                any_address |= bit;
            }
            scope.ports.iter().for_each(|port| *ports.entry(*port).or_default() |= bit);
            let listed = scope.addresses.iter().map(|ip| addr(*ip));
            listed.for_each(|addr| *addresses.entry(addr).or_default() |= bit);
        }
        for at in 0..=u16::MAX {
            let failsafe = self.ports.get(at.into()) & (port::FAILSAFE_TCP | port::FAILSAFE_UDP);
            self.ports.set(at.into(), failsafe | ports.get(&at).copied().unwrap_or(0));
        }
        for (addr, bits) in &addresses {
            self.addresses.insert(*addr, *bits).context("can't write a service's address")?;
        }
        for (addr, _) in self.addresses.entries()? {
            if !addresses.contains_key(&addr) {
                self.addresses.remove(&addr).context("can't remove a service's address")?;
            }
        }
        settings.update(0, |settings| {
            settings.any_port_scopes = any_port;
            settings.any_address_scopes = any_address;
            settings.features &= !feature::ADDRESS_SCOPES;
            if !addresses.is_empty() {
                settings.features |= feature::ADDRESS_SCOPES;
            }
        });
        Ok(())
    }

    /// Replaces the ports on which nobody is dropped.
    pub fn set_failsafe(&self, tcp: &[u16], udp: &[u16]) {
        for (ports, bit) in [(tcp, port::FAILSAFE_TCP), (udp, port::FAILSAFE_UDP)] {
            for at in 0..=u16::MAX {
                if ports.contains(&at) {
                    self.ports.set_bits(at.into(), bit);
                } else {
                    self.ports.clear_bits(at.into(), bit);
                }
            }
        }
    }
}
