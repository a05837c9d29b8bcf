// Asks for a product over TLS: client.js ADDRESS PORT CA
const fs = require("node:fs");
const https = require("node:https");

const [address, port, ca] = process.argv.slice(2);
const options = {
  host: address,
  port,
  servername: "shop.test",
  headers: { Host: "shop.test" },
  path: "/api/products/1",
  ca: fs.readFileSync(ca),
};
https.get(options, (answer) => answer.pipe(process.stdout));
