// Node.js as a client: `client.mjs URL...` fetches each page; one line of JSON for each.
import { createHash } from "node:crypto";
import dns from "node:dns";
import http from "node:http";

function said(error) {
    const cause = error.cause ?? error;
    return { error: (cause.errors?.[0] ?? cause).code };
}

async function page(url) {
    try {
        const answer = await fetch(url);
        const body = Buffer.from(await answer.arrayBuffer());
        const sha = createHash("sha256").update(body).digest("hex");
        return { status: answer.status, length: body.length, sha };
    } catch (error) {
        return said(error);
    }
}

// The classic client, on one connection that is kept.
function kept(url, count) {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const ports = new Set();
    const one = () =>
        new Promise((resolve, reject) => {
            const request = http.get(url, { agent }, (answer) => {
                ports.add(answer.socket.localPort);
                answer.resume().on("end", () => resolve(answer.statusCode));
            });
            request.on("error", reject);
        });
    return (async () => {
        const statuses = [];
        for (let i = 0; i < count; i++) statuses.push(await one());
        agent.destroy();
        return { statuses, connections: ports.size };
    })();
}

async function names(words) {
    const sorted = (list) => list.map((one) => one.address ?? one).sort();
    const ask = async (question) => question.then(sorted, said);
    // c-ares asks by itself; `lookup` is getaddrinfo(3) in a thread.
    const other = new dns.promises.Resolver({ timeout: 2000, tries: 2 });
    const [server, ...rest] = words;
    if (server) other.setServers([server]);
    for (const name of rest) {
        console.log(
            JSON.stringify({
                lookup: await ask(dns.promises.lookup(name, { all: true })),
                four: await ask(other.resolve4(name)),
                six: await ask(other.resolve6(name)),
            }),
        );
    }
}

const [verb, ...words] = process.argv.slice(2);
if (verb === "get") {
    for (const line of await Promise.all(words.map(page))) console.log(JSON.stringify(line));
} else if (verb === "many") {
    const all = await Promise.all(Array.from({ length: Number(words[1]) }, () => page(words[0])));
    console.log(all.filter((one) => one.status === 200 && one.sha === all[0].sha).length);
} else if (verb === "kept") {
    console.log(JSON.stringify(await kept(words[0], Number(words[1]))));
} else if (verb === "names") {
    await names(words);
}
