// Node `ws`: the broadcast of its README, the message made once. Echoes what it is sent.
'use strict';
const { createServer } = require('node:http');
const { WebSocketServer } = require('ws');
const { announce, onPublish, payload } = require('./control.cjs');

const server = createServer();
const wss = new WebSocketServer({ server, path: '/ws' });

wss.on('connection', (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  socket.on('error', () => {});
  socket.send('{"type":"welcome"}');
});

function publish(data) {
  const message = Buffer.from(JSON.stringify({ type: 'news', data }));
  for (const client of wss.clients) {
    if (client.readyState === 1) client.send(message, { binary: false });
  }
}

server.on('request', onPublish(publish));
announce(server, (count) => {
  for (let i = 0; i < count; i += 1) publish(payload);
});
