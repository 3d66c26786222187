// The control port of the Node.js servers, and their route for publications.
'use strict';
const net = require('node:net');

// With an adapter and the path of a Redis server's socket, it is one of several nodes.
const [, , payload, adapter, redis] = process.argv;

function announce(server, fire) {
  const control = net.createServer((socket) => {
    socket.on('data', (data) => {
      for (const line of data.toString().trim().split('\n')) fire(Number(line));
    });
    socket.on('error', () => {});
  });
  server.listen({ port: 0, host: '127.0.0.1', backlog: 2048 }, () => {
    control.listen(0, '127.0.0.1', () => {
      const ports = { port: server.address().port, control: control.address().port };
      console.log(JSON.stringify(ports));
    });
  });
}

// Takes {"event", "data"} as JSON in POST /publish.
function onPublish(publish) {
  return (request, response) => {
    if (request.method !== 'POST' || request.url !== '/publish') return;
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      publish(JSON.parse(Buffer.concat(chunks).toString()).data);
      const body = '{"success":true}';
      response.writeHead(200, {
        'Content-Type': 'application/json',
        'Content-Length': body.length,
      });
      response.end(body);
    });
  };
}

module.exports = { adapter, announce, onPublish, payload, redis };
