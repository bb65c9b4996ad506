package ai.onnxruntime;

/** What goes wrong in a session. */
public class OrtException extends Exception {
  public OrtException(String words) {
    super(words);
  }
}
