// Node `socket.io`: an emit to a room; acknowledges with what it is sent.
'use strict';
const { createServer } = require('node:http');
const { Server } = require('socket.io');
const { announce, onPublish, payload } = require('./control.cjs');

const server = createServer();
const io = new Server(server);

io.on('connection', (socket) => {
  socket.join('all');
  socket.on('echo', (text, reply) => reply(text));
});

function publish(data) {
  io.to('all').emit('news', data);
}

// socket.io passes on the requests that are not its own.
server.on('request', onPublish(publish));
announce(server, (count) => {
  for (let i = 0; i < count; i += 1) publish(payload);
});
