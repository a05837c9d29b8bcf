# Asks for a product over TLS: client.py ADDRESS PORT CA
import socket
import ssl
import sys

address, port, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
# As http.client does it.
context.set_alpn_protocols(["http/1.1"])
with (
    socket.create_connection((address, int(port)), 10) as tcp,
    context.wrap_socket(tcp, server_hostname="shop.test") as tls,
):
    tls.sendall(b"GET /api/products/1 HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
    sys.stdout.buffer.write(tls.makefile("rb").read())
