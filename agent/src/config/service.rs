//! Services and their login endpoints.

use std::collections::HashMap;
use std::sync::Arc;

use portcullis_common::policy::MAX_SCOPES;

use super::kinds::{Choice, Integer, OrAbsent};
use super::schema::{MODE, PORT, RESPONSE};
use super::section::{Place, Section, key};
use super::types::{FailureMatch, Login, Service};
use super::words::{ADDRESS, HOST, LOGIN_PATH, METHOD, SERVICE_NAME, TEXT};

use crate::decision::Scope;

const SCOPE: Choice<Scope> = Choice(&[("host", Scope::Host), ("service", Scope::Service)]);
const STATUS: Integer<u16> = Integer { min: 100, max: 599 };

/// Reads the list of services; names must differ. Returns what came of the action of each.
pub(super) fn read(top: &mut Section, services: &mut Vec<Service>) -> Vec<Place> {
    let mut names: HashMap<Arc<str>, Place> = HashMap::new();
    let (mut places, mut actions) = (Vec::new(), Vec::new());
    top.tables("service", None, |s| {
        let Some((service, name, action)) = service(s) else { return };
        if let Some(first) = names.get(&service.name) {
            let line = s.line_of(first);
            let message = format!("\"{}\" is the service on line {line} already", service.name);
            s.conflict(&[&name], message);
            return;
        }
        names.insert(service.name.clone(), name.clone());
        places.push(name);
        actions.push(action);
        services.push(service);
    });
    warn_of_shadowed(top, services, &places);
    let scoped = services.iter().filter(|service| service.has_scope()).count();
    if let (true, Some(last)) = (scoped > MAX_SCOPES, places.last()) {
        let message =
            format!("{scoped} services have ports or addresses, but at most {MAX_SCOPES} can");
        top.conflict(&[last], message);
    }
    actions
}

fn service(s: &mut Section) -> Option<(Service, Place, Place)> {
    let doc = "Name of the service in findings, decisions and metrics.";
    let name = s.required(key("service.name", doc), &SERVICE_NAME);
    let mut service = Service::default();
    let doc = "Host names, with `*.` at the front for every name below a domain; empty for all. A \
               request belongs to the first service whose hosts and ports match.";
    s.list(key("service.hosts", doc), &HOST, &mut service.hosts);
    let doc = "Ports served on; empty for all.";
    let ports = s.list(key("service.ports", doc), &PORT, &mut service.ports);
    let doc = "Addresses served on, for rules that hold for the service alone; empty for all.";
    let addresses = s.list(key("service.addresses", doc), &ADDRESS, &mut service.addresses);
    let doc = "Where detectors' decisions on clients of the service hold: on the whole host, or \
               only on the ports and addresses of the service.";
    let scope = s.value(key("service.scope", doc), &SCOPE, &mut service.scope);
    if service.scope == Scope::Service && !service.has_scope() {
        let message = "is \"service\", but the service has neither ports nor addresses";
        s.conflict(&[&scope, &ports.list, &addresses.list], message.to_owned());
    }
    let doc = "As `decide.action`, for this service alone.";
    let action = s.value(key("service.action", doc), &OrAbsent(RESPONSE), &mut service.action);
    let doc = "As `mode`, for this service alone.";
    s.value(key("service.mode", doc), &OrAbsent(MODE), &mut service.mode);
    s.tables("service.login", None, |s| service.logins.extend(login(s)));
    let (name, place) = name?;
    service.name = name.into();
    Some((service, place, action))
}

fn login(s: &mut Section) -> Option<Login> {
    let mut method = None;
    let doc = "Method of the login request; without it, any that sends a body.";
    s.value(key("service.login.method", doc), &OrAbsent(METHOD), &mut method);
    let doc = "Path of the login request.";
    let path = s.required(key("service.login.path", doc), &LOGIN_PATH);
    let mut user_field = None;
    let doc = "Form or JSON field with the user name; without it, the usual names.";
    s.value(key("service.login.user_field", doc), &OrAbsent(TEXT), &mut user_field);
    let mut failure = Vec::new();
    s.tables("service.login.failure", None, |s| failure.extend(failure_match(s)));
    let (path, _) = path?;
    Some(Login { method, path, user_field, failure })
}

fn failure_match(s: &mut Section) -> Option<FailureMatch> {
    let (mut status, mut body, mut location) = (None, None, None);
    let doc = "A response with this status is a failed login, beside 401, 403 and 429.";
    let status_place =
        s.value(key("service.login.failure.status", doc), &OrAbsent(STATUS), &mut status);
    let doc = "A response with this text in its body is a failed login.";
    let body_key = key("service.login.failure.body_contains", doc);
    let body_place = s.value(body_key, &OrAbsent(TEXT), &mut body);
    let doc = "A response with this text in its `Location` header is a failed login.";
    let location_key = key("service.login.failure.location_contains", doc);
    let location_place = s.value(location_key, &OrAbsent(TEXT), &mut location);
    match (status, body, location) {
        (Some(status), None, None) => Some(FailureMatch::Status(status)),
        (None, Some(text), None) => Some(FailureMatch::BodyContains(text)),
        (None, None, Some(text)) => Some(FailureMatch::LocationContains(text)),
        (status, body, location) => {
            let count = [status.is_some(), body.is_some(), location.is_some()];
            let count = count.into_iter().filter(|given| *given).count();
            let message = format!(
                "has {count} of the keys status, body_contains and location_contains, but must \
                 have exactly one"
            );
            let whole = s.own_place();
            s.conflict(&[&whole, &status_place, &body_place, &location_place], message);
            None
        }
    }
}

/// Warns of services that no request can reach, because one before them takes it all.
fn warn_of_shadowed(top: &mut Section, services: &[Service], places: &[Place]) {
    for (index, (service, place)) in services.iter().zip(places).enumerate() {
        let earlier = services.iter().zip(places).take(index);
        let Some((_, by)) = earlier.into_iter().find(|(earlier, _)| takes_all(earlier, service))
        else {
            continue;
        };
        let line = top.line_of(by);
        let message = format!(
            "no request reaches \"{}\": the service on line {line} takes all of its hosts and ports",
            service.name
        );
        top.warn(place, message);
    }
}

fn takes_all(earlier: &Service, later: &Service) -> bool {
    let hosts = earlier.hosts.is_empty()
        || (!later.hosts.is_empty() && later.hosts.iter().all(|host| covers_host(earlier, host)));
    let ports = earlier.ports.is_empty()
        || (!later.ports.is_empty() && later.ports.iter().all(|port| earlier.ports.contains(port)));
    hosts && ports
}

/// Whether the patterns of `service` take every name that `pattern` takes.
fn covers_host(service: &Service, pattern: &str) -> bool {
    let any_port = service.ports.first().copied();
    service.hosts.iter().any(|host| host == pattern) || service.covers(pattern, any_port)
}
