//! Is a TLS object taken for the right socket's, whatever the program does with both?

use std::net::SocketAddr;
use std::process::Command;

use portcullis_tests::agent::Agent;
use portcullis_tests::capture::Capture;
use portcullis_tests::certs::Certs;
use portcullis_tests::client::{Client, Connection, Request};
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::nginx::NAME;
use portcullis_tests::process::Process;
use portcullis_tests::scenario::SOON;
use portcullis_tests::script::{self, Language};
use portcullis_tests::wait;

const PREFIX: &str = "pcx-socks";
const PORT: u16 = 8443;
const TRANSACTIONS: &str = "portcullis_transactions_total";
/// Debian's own Python, which uses the system's OpenSSL.
const PYTHON: &str = "/usr/bin/python3";

/// How every script on OpenSSL itself begins.
const LIBRARIES: &str = r#"
import ctypes, socket, sys
from ctypes import CFUNCTYPE, c_char_p, c_int, c_size_t, c_void_p
port, cert, key = sys.argv[1:]
ssl, crypto = ctypes.CDLL("libssl.so.3"), ctypes.CDLL("libcrypto.so.3")
"#;

/// OpenSSL's memory that is given back goes to the next that asks for as much.
const ALLOCATOR: &str = r#"
libc, sizes, unused = ctypes.CDLL("libc.so.6"), {}, {}
libc.malloc.restype = c_void_p
def allocate(size, *place):
    address = unused[size].pop() if unused.get(size) else libc.malloc(c_size_t(size))
    sizes[address] = size
    return address
def release(address, *place):
    if address:
        unused.setdefault(sizes[address], []).append(address)
def resize(address, size, *place):
    moved = allocate(size)
    if address:
        ctypes.memmove(moved, address, min(size, sizes[address]))
        release(address)
    return moved
functions = [
    CFUNCTYPE(c_void_p, c_size_t, c_char_p, c_int)(allocate),
    CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_char_p, c_int)(resize),
    CFUNCTYPE(None, c_void_p, c_char_p, c_int)(release),
]
assert crypto.CRYPTO_set_mem_functions(*functions) == 1
"#;

/// Listens, and can move an object's records between memory and a connection until a call is through.
const LISTENER: &str = r#"
for name in ["TLS_server_method", "SSL_CTX_new", "SSL_new"]:
    getattr(ssl, name).restype = c_void_p
crypto.BIO_new.restype = crypto.BIO_s_mem.restype = c_void_p
context = c_void_p(ssl.SSL_CTX_new(c_void_p(ssl.TLS_server_method())))
assert ssl.SSL_CTX_use_certificate_chain_file(context, cert.encode()) == 1
assert ssl.SSL_CTX_use_PrivateKey_file(context, key.encode(), 1) == 1
answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
buffer, sealed = ctypes.create_string_buffer(65536), ctypes.create_string_buffer(65536)
listener = socket.create_server(("0.0.0.0", int(port)))
print("ready", flush=True)

def over_memory(tls, connection):
    input, output = (c_void_p(crypto.BIO_new(c_void_p(crypto.BIO_s_mem()))) for _ in range(2))
    ssl.SSL_set_bio(tls, input, output)
    def complete(call):
        while True:
            done = call()
            moved = crypto.BIO_read(output, sealed, 65536)
            if moved > 0:
                connection.sendall(sealed.raw[:moved])
            if done > 0:
                return done
            data = connection.recv(65536)
            assert data
            crypto.BIO_write(input, data, len(data))
    return complete
"#;

/// Answers one request over a socket, ends TLS without closing the socket, and answers one more
/// on another connection by a TLS object at the same address, over memory.
const REUSE: &str = r#"
first, _ = listener.accept()
address = ssl.SSL_new(context)
tls = c_void_p(address)
ssl.SSL_set_fd(tls, first.fileno())
assert ssl.SSL_accept(tls) == 1
assert ssl.SSL_read(tls, buffer, 65536) > 0
assert ssl.SSL_write(tls, answer, len(answer)) > 0
ssl.SSL_free(tls)
assert ssl.SSL_new(context) == address

second, _ = listener.accept()
complete = over_memory(tls, second)
complete(lambda: ssl.SSL_accept(tls))
complete(lambda: ssl.SSL_read(tls, buffer, 65536))
complete(lambda: ssl.SSL_write(tls, answer, len(answer)))
second.recv(1)
"#;

/// Answers requests over memory up to one that says it is the last, then one more on another connection
/// by the same TLS object, with the first socket still there.
const CLEARED: &str = r#"
tls = c_void_p(ssl.SSL_new(context))
def serve(connection):
    complete = over_memory(tls, connection)
    complete(lambda: ssl.SSL_accept(tls))
    while True:
        length = complete(lambda: ssl.SSL_read(tls, buffer, 65536))
        complete(lambda: ssl.SSL_write(tls, answer, len(answer)))
        if b"Last: 1" in buffer.raw[:length]:
            return
first, _ = listener.accept()
serve(first)
assert ssl.SSL_clear(tls) == 1
second, _ = listener.accept()
serve(second)
second.recv(1)
"#;

/// Answers requests over Multipath TCP.
const MPTCP_SERVER: &str = r#"
import socket, ssl, sys
port, cert, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
listener.bind(("0.0.0.0", int(port)))
listener.listen()
print("ready", flush=True)
while True:
    with context.wrap_socket(listener.accept()[0], server_side=True) as tls:
        while tls.recv(65536):
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
"#;

/// Sends one request over Multipath TCP; fails when the connection is plain TCP.
const MPTCP_CLIENT: &str = r#"
import socket, ssl, sys
address, port, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
plain.connect((address, int(port)))
# MPTCP_INFO of SOL_MPTCP fails on a connection that fell back to plain TCP.
plain.getsockopt(284, 1, 128)
with context.wrap_socket(plain, server_hostname=address) as tls:
    tls.sendall(b"GET /multipath HTTP/1.1\r\nHost: shop\r\n\r\n")
    assert tls.recv(65536).startswith(b"HTTP/1.1 200")
"#;

#[test]
fn a_tls_object_in_the_place_of_another_has_not_its_socket() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let capture = Capture::start(&lab).expect("the probes");
    let certs = certs(&lab);
    let _python = serve(&lab, &[LIBRARIES, ALLOCATOR, LISTENER, REUSE].concat(), &certs);
    let client = Client::trusting(&certs.ca).expect("a client");
    let server = SocketAddr::new(lab.server().v4().into(), PORT);
    let ask = |host: &Host| {
        host.run(|| {
            let mut connection = client.connect(server)?;
            let path = format!("/{}", connection.local_address()?);
            let answer = connection.request(&Request::get(&path))?;
            assert_eq!(answer.status, 200);
            Ok(connection)
        })
    };
    let _first = ask(lab.client(0)).expect("an answer");
    let reads = |least| {
        let reads = capture.reads(server);
        Ok((reads.len() >= least).then_some(reads))
    };
    wait::until(SOON, "the first", || reads(1)).expect("the first");
    let _second = ask(lab.client(1)).expect("an answer");
    // The second one's sender may be unknown yet, but is not the first one.
    let counted = wait::until(SOON, "the second", || {
        Ok(reads(2)?.is_some().then_some(()).or((capture.without_socket()? > 0).then_some(())))
    });
    counted.expect("seen or counted");
    for read in capture.reads(server) {
        assert_eq!(read.sender(), Some(read.client));
    }
}

#[test]
fn a_tls_object_that_begins_anew_leaves_its_socket() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let capture = Capture::start(&lab).expect("the probes");
    let certs = certs(&lab);
    let _python = serve(&lab, &[LIBRARIES, LISTENER, CLEARED].concat(), &certs);
    let client = Client::trusting(&certs.ca).expect("a client");
    let server = SocketAddr::new(lab.server().v4().into(), PORT);
    let connect = |host: &Host| host.run(|| client.connect(server)).expect("a connection");
    let ask = |connection: &mut Connection, last: &str| {
        let path = format!("/{}", connection.local_address()?);
        let answer = connection.request(&Request::get(&path).header("Last", last))?;
        anyhow::ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    };
    let mut first = connect(lab.client(0));
    let known = wait::until(SOON, "the first", || {
        ask(&mut first, "0")?;
        Ok((!capture.reads(server).is_empty()).then_some(()))
    });
    known.expect("known");
    ask(&mut first, "1").expect("an answer");
    let mut second = connect(lab.client(1));
    ask(&mut second, "1").expect("an answer");
    let own = second.local_address().expect("an address");
    let reads = wait::until(SOON, "the second", || {
        let reads = capture.reads(server);
        Ok(reads.iter().any(|read| read.sender() == Some(own)).then_some(reads))
    });
    for read in reads.expect("seen") {
        assert_eq!(read.sender(), Some(read.client));
    }
}

#[test]
fn multipath_tcp_is_read() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let agent = Agent::start(&lab, "").expect("the agent");
    let certs = certs(&lab);
    let _python = serve(&lab, MPTCP_SERVER, &certs);
    let mut client = Command::new(PYTHON);
    client.args(["-c", MPTCP_CLIENT, &lab.server().v4().to_string(), &PORT.to_string()]);
    client.arg(&certs.ca);
    let client = lab.run_in(lab.client(0), client).expect("Python runs");
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen == 1.0).expect("seen");
}

fn certs(lab: &Lab) -> Certs {
    let address = lab.server().v4().into();
    Certs::generate(lab.dir(), &[NAME], &[address]).expect("certificates")
}

/// Runs `script` on the server host, from when it listens on.
fn serve(lab: &Lab, script: &str, certs: &Certs) -> Process {
    script::serve(lab, Language::Python, script, PORT, certs)
}
