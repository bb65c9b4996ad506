package ai.onnxruntime;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;

/** A tensor: its type by NumPy's name, its shape and its bytes. */
public class OnnxTensor implements OnnxValue {
  final String type;
  final long[] shape;
  final byte[] bytes;
  private boolean closed = false;

  OnnxTensor(String type, long[] shape, byte[] bytes) {
    this.type = type;
    this.shape = shape;
    this.bytes = bytes;
  }

  public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
    ByteBuffer bytes = bytes(data, 4);
    bytes.asFloatBuffer().put(data.duplicate());
    return new OnnxTensor("float32", shape, bytes.array());
  }

  public static OnnxTensor createTensor(OrtEnvironment env, IntBuffer data, long[] shape) throws OrtException {
    ByteBuffer bytes = bytes(data, 4);
    bytes.asIntBuffer().put(data.duplicate());
    return new OnnxTensor("int32", shape, bytes.array());
  }

  public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type)
      throws OrtException {
    if (type != OnnxJavaType.UINT8) {
      throw new OrtException("bytes are expected");
    }
    ByteBuffer bytes = bytes(data, 1);
    bytes.put(data.duplicate());
    return new OnnxTensor("uint8", shape, bytes.array());
  }

  public FloatBuffer getFloatBuffer() {
    return ByteBuffer.wrap(checked().bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
  }

  OnnxTensor checked() {
    if (closed) {
      throw new IllegalStateException("this tensor is closed");
    }
    return this;
  }

  @Override
  public void close() {
    closed = true;
  }

  private static ByteBuffer bytes(Buffer data, int each) {
    return ByteBuffer.allocate(data.remaining() * each).order(ByteOrder.LITTLE_ENDIAN);
  }
}
