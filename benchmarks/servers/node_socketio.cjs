// Node `socket.io`: an emit to a room; acknowledges with what it is sent.
'use strict';
const { createServer } = require('node:http');
const { Server } = require('socket.io');
const { adapter, announce, onPublish, payload, redis } = require('./control.cjs');

const server = createServer();
const io = new Server(server);

io.on('connection', (socket) => {
  socket.join('all');
  socket.on('echo', (text, reply) => reply(text));
});

function publish(data) {
  io.to('all').emit('news', data);
}

// As in the documentation of each adapter.
async function share() {
  const client = require('redis').createClient({ socket: { path: redis } });
  await client.connect();
  if (adapter === 'streams') {
    io.adapter(require('@socket.io/redis-streams-adapter').createAdapter(client));
  } else {
    const subscriber = client.duplicate();
    await subscriber.connect();
    io.adapter(require('@socket.io/redis-adapter').createAdapter(client, subscriber));
  }
}

async function main() {
  if (adapter) await share();
  // socket.io passes on the requests that are not its own.
  server.on('request', onPublish(publish));
  announce(server, (count) => {
    for (let i = 0; i < count; i += 1) publish(payload);
  });
}

main();
