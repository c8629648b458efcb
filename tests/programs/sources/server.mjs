// Node.js as a server: `server.mjs ADDRESS PORT [WORKERS [none|rr]]`, WORKERS processes sharing the
// port, by handing connections out (rr) or by one listener in each (none).
// Answers with process id, client's address and the length of what was sent.
import cluster from "node:cluster";
import http from "node:http";

const [host, port, workers, policy] = process.argv.slice(2);

if (workers && cluster.isPrimary) {
    cluster.schedulingPolicy = policy === "none" ? cluster.SCHED_NONE : cluster.SCHED_RR;
    let ready = 0;
    cluster.on("listening", () => ++ready == Number(workers) && console.log("ready"));
    cluster.on("exit", (_, status) => console.log(`a worker ended: ${status}`));
    for (let i = 0; i < Number(workers); i++) cluster.fork();
} else {
    const server = http.createServer((request, answer) => {
        let length = 0;
        request.on("data", (part) => (length += part.length));
        request.on("end", () => {
            const { remoteAddress, localPort } = request.socket;
            answer.end(JSON.stringify({ pid: process.pid, remoteAddress, localPort, length }));
        });
    });
    server.on("error", (error) => {
        console.log(error.code);
        process.exit(3);
    });
    server.listen(Number(port), host || undefined);
}
