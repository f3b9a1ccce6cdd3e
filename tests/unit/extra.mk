# Unit tests of a room's own file: what they link besides lib/.
$(OUT)/unit/snapshot_test: $(OBJ)/relay/snapshot.o
$(OUT)/unit/batch_test: $(OBJ)/relay/batch.o
$(OUT)/unit/pipe_test: $(OBJ)/relay/pipe.o $(OBJ)/relay/batch.o
$(OUT)/unit/message_test: $(OBJ)/consumers/message.o $(OBJ)/consumers/part.o
