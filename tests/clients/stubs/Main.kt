// Asks the client about pictures: lines of 'PICTURE WIDTH HEIGHT MASK x,y,label;... x0,y0,x1,y1', '-' for none.
import java.io.File

fun main(given: Array<String>) {
    Sam(File(given[0])).use { model ->
        for (line in File(given[1]).readLines()) {
            val (picture, width, height, mask, points) = line.split(" ")
            val box = line.split(" ")[5]
            val rgb = File(picture).readBytes().takeLast(width.toInt() * height.toInt() * 3)
            val pixels = IntArray(rgb.size / 3) { i -> (0..2).fold(0xFF) { all, c -> (all shl 8) or (rgb[3 * i + c].toInt() and 0xFF) } }
            model.setPicture(Picture.of(pixels, width.toInt(), height.toInt()))
            val clicks = if (points == "-") listOf() else points.split(";").map { click ->
                val (x, y, label) = click.split(",").map { it.toFloat() }
                Click(x, y, label)
            }
            val corners = if (box == "-") null else box.split(",").map { it.toFloat() }.let { Box(it[0], it[1], it[2], it[3]) }
            val found = model.predict(clicks, corners)
            File(mask).writeBytes(ByteArray(found.pixels.size) { if (found.pixels[it]) 1 else 0 })
        }
    }
}
