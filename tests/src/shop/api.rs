//! What the shop answers.

use serde_json::{Value, json};

use super::{PASSWORD, USER};

const NAMES: [&str; 12] = [
    "kettle", "teapot", "cup", "saucer", "spoon", "tray", "sieve", "caddy", "cosy", "jug", "towel",
    "timer",
];

/// Status and body for one request.
pub fn answer(method: &str, path: &str, body: &[u8]) -> (u16, Value) {
    let path = path.split('?').next().unwrap_or_default();
    match (method, path) {
        ("POST", "/api/login") => login(body),
        ("GET", "/api/products") => (200, json!({ "products": products() })),
        ("POST", "/api/cart") => cart(body),
        (_, "/api/login" | "/api/products" | "/api/cart") => error(405, "method not allowed"),
        ("GET", path) => match path.strip_prefix("/api/products/").and_then(product) {
            Some(product) => (200, product),
            None => error(404, "not found"),
        },
        _ => error(404, "not found"),
    }
}

fn login(body: &[u8]) -> (u16, Value) {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return error(400, "the body is not JSON");
    };
    let field = |name: &str| body.get(name).and_then(Value::as_str);
    match (field("username"), field("password")) {
        (Some(USER), Some(PASSWORD)) => (200, json!({ "token": "laboratory-session" })),
        (Some(_), Some(_)) => error(401, "wrong user name or password"),
        _ => error(400, "username and password are needed"),
    }
}

fn cart(body: &[u8]) -> (u16, Value) {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let number = |name: &str| body.get(name).and_then(Value::as_u64);
    match (number("product").filter(|id| exists(*id)), number("quantity")) {
        (Some(product), Some(quantity @ 1..=99)) => {
            (201, json!({ "product": product, "quantity": quantity }))
        }
        _ => error(400, "product and quantity (1 to 99) are needed"),
    }
}

fn products() -> Vec<Value> {
    (1..).zip(NAMES).map(|(id, name)| describe(id, name)).collect()
}

fn product(id: &str) -> Option<Value> {
    let id: u64 = id.parse().ok()?;
    let index = usize::try_from(id.checked_sub(1)?).ok()?;
    NAMES.get(index).map(|name| describe(id, name))
}

fn exists(id: u64) -> bool {
    product(&id.to_string()).is_some()
}

fn describe(id: u64, name: &str) -> Value {
    json!({ "id": id, "name": name, "price_cents": 450 + 175 * id })
}

fn error(status: u16, message: &str) -> (u16, Value) {
    (status, json!({ "error": message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, path: &str, body: &str) -> u16 {
        answer(method, path, body.as_bytes()).0
    }

    #[test]
    fn one_account_logs_in() {
        let body = |user: &str, password: &str| {
            json!({ "username": user, "password": password }).to_string()
        };
        assert_eq!(status("POST", "/api/login", &body(USER, PASSWORD)), 200);
        assert_eq!(status("POST", "/api/login", &body(USER, "guess")), 401);
        assert_eq!(status("POST", "/api/login", &body("bob@shop.test", PASSWORD)), 401);
        assert_eq!(status("POST", "/api/login", "{}"), 400);
        assert_eq!(status("POST", "/api/login", "{"), 400);
    }

    #[test]
    fn products_and_cart() {
        assert_eq!(status("GET", "/api/products?page=1", ""), 200);
        assert_eq!(answer("GET", "/api/products/1", b"").1["name"], "kettle");
        for path in ["/api/products/0", "/api/products/13", "/api/products/x", "/api/products/"] {
            assert_eq!(status("GET", path, ""), 404, "{path}");
        }
        assert_eq!(status("POST", "/api/cart", r#"{"product":1,"quantity":2}"#), 201);
        assert_eq!(status("POST", "/api/cart", r#"{"product":99,"quantity":2}"#), 400);
    }

    #[test]
    fn the_rest() {
        assert_eq!(status("GET", "/", ""), 404);
        assert_eq!(status("DELETE", "/api/cart", ""), 405);
    }
}
