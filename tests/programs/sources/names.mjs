// Names as Node.js finds them by getaddrinfo: `names.mjs NAME...`, `-` reads names from stdin.
import dns from "node:dns/promises";
import readline from "node:readline";

async function look(name) {
    try {
        const found = await dns.lookup(name, { all: true });
        return [...new Set(found.map((entry) => entry.address))].sort().join(" ");
    } catch (error) {
        return error.code === "ENOTFOUND" ? "no such name" : `error ${error.code}`;
    }
}

for (const word of process.argv.slice(2)) {
    const names = word === "-" ? readline.createInterface({ input: process.stdin }) : [word];
    for await (const name of names) console.log(await look(name));
}
